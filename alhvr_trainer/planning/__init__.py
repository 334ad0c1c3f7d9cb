"""Planning: the planner, the ready plans that override it, and the commands."""
