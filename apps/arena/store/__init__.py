"""The arena's database: tables, migrations, one writer, the event log, what can be shown."""
