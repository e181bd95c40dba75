"""The bundled language-model trainer, and the fitting of scorers' models and of tokenizers."""
