"""The page of the server: search, explanations, feedback and learning, rendered on the server."""
