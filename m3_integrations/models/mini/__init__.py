"""m3-mini: the bundled multilingual-e5-small with heads trained in this project."""
