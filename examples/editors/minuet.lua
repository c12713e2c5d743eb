require('minuet').setup {
  provider = 'openai_fim_compatible',
  n_completions = 3, -- three requests, which the server answers with three drafts of one run
  throttle = 0,      -- a newer request costs the server little
  debounce = 100,
  provider_options = {
    openai_fim_compatible = {
      name = 'Superdraft',
      end_point = 'http://127.0.0.1:8012/v1/completions',
      model = 'superdraft',
      api_key = 'TERM', -- the name of a variable that holds the key; any that is set, where none is asked for
      optional = { max_tokens = 16 },
    },
  },
  virtualtext = {
    auto_trigger_ft = { 'markdown', 'text', 'gitcommit' },
    keymap = {
      accept = '<Tab>',
      next = '<A-]>',
      prev = '<A-[>',
      dismiss = '<A-e>',
    },
  },
}
