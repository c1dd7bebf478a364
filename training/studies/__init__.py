"""Parts of a study (../study.py): its file, its runs, its report. The YAML files here are the project's studies."""
