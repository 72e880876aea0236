"""The search for a schedule: measure the grid, choose, train a stage with the choice, again."""
