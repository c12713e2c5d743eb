-- A plugin from a folder, with its settings of examples/editors.
vim.cmd('filetype plugin indent on')
vim.opt.runtimepath:prepend(PLUGIN)
if SETTINGS:match('%.lua$') then
  dofile(SETTINGS)
  vim.cmd('Minuet virtualtext enable')
else
  vim.cmd.source(SETTINGS)
  vim.cmd.runtime('plugin/llama.vim')
end
