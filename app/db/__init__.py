"""Database: model base, sessions, migrations."""
