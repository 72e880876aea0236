"""What a schedule takes on a device: counted from its operations, or from measured times."""
