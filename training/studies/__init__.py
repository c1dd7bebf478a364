"""Studies: arms of a recipe trained, asked and compared. The YAML files here are those that the project runs."""
