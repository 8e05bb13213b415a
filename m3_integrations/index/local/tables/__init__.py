"""Tables of the catalog of a local index."""
