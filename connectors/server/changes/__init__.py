"""What changes on a host, each change an event with before and after. One module a watcher; ``watch.py`` runs them in turn."""
