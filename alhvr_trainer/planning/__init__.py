"""Planning: the planner, the ready plans laid over its result, and the commands."""
