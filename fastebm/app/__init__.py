"""The application on top of the library: command line, demo, training runs, reports."""
