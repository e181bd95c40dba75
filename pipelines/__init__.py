"""Beam graphs, recipes, run folders, ledger, command line and report."""
