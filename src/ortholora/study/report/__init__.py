"""What people see of a summary: words, tables, pictures."""
