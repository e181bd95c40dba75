"""Generation by language models: one contract (`engine`), three engines (`transformers`, `vllm`, `openai`), and one
cache on disk of finished requests (`cache`). See docs/generation.md."""
