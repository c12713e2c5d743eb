"""The language server: drafts in editors that speak LSP 3.18's `textDocument/inlineCompletion`."""
