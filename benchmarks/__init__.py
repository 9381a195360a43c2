"""Speed, measured side by side in one process; nothing here can fail a test run."""
