"""Room 4: a retriever against judged queries."""
