"""What people see. The only package that imports rich; it draws from events and plain values."""
