"""The command line. Commands are short: what they do stands elsewhere, imported when needed."""
