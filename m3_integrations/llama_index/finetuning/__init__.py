"""Fine-tuning and NUDGE under LlamaIndex's interfaces."""
