"""Results from elsewhere: packed by their authors, verified as hostile input, merged as what was checked."""
