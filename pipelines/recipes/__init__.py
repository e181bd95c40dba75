"""Recipes that come with corpusmill; `corpusmill run quickstart` finds them by name."""
