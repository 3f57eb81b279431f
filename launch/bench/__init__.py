"""`sd3par bench`: one harness for all tables of times and memory. `command` lists what can be measured."""
