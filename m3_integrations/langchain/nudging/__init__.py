"""NUDGE and question generation for LangChain."""
