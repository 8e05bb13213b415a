"""Building blocks shared by the LlamaIndex and LangChain adapters."""
