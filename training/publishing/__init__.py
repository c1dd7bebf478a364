"""From a run to what others load: merged, exported or pushed, and checked after the push."""
