"""Views and macros over a run folder, and the small code that runs them in DuckDB."""
