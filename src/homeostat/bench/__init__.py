"""`homeostat bench`: every framework's batch norm and ours, timed side by side on this machine."""
