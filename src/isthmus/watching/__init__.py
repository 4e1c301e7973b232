"""What a run says while it goes on: its journal, progress, stalls, failures and trace."""
