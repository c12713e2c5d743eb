-- What the user sees around the cursor: the line, and the ghost text of every plugin.
function _G.Ghost()
  local marks = {}
  for name, ns in pairs(vim.api.nvim_get_namespaces()) do
    for _, mark in ipairs(vim.api.nvim_buf_get_extmarks(0, ns, 0, -1, { details = true })) do
      local d = mark[4]
      if d.virt_text or d.virt_lines then
        local text, below = '', {}
        for _, chunk in ipairs(d.virt_text or {}) do text = text .. chunk[1] end
        for _, line in ipairs(d.virt_lines or {}) do
          local joined = ''
          for _, chunk in ipairs(line) do joined = joined .. chunk[1] end
          table.insert(below, joined)
        end
        table.insert(marks, { row = mark[2], column = mark[3], text = text, below = below })
      end
    end
  end
  return vim.json.encode({ mode = vim.fn.mode(), line = vim.api.nvim_get_current_line(),
                           column = vim.fn.col('.') - 1, marks = marks })
end
