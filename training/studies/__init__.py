"""Parts of the study (../study.py): its file, its runs, its report. The YAML files here are those that the project runs."""
