"""Those who watch a run: logs, metrics, event files and a status file; a module is imported where it is wanted."""
