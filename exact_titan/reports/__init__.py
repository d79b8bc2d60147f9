"""Runs side by side: tables and figures."""
