"""`superdraft try` and `superdraft lsp`: suggestions while somebody writes, in the terminal or in an editor."""
