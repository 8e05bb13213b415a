"""Model selection: exact sweeps over gamma, folds, significance."""
