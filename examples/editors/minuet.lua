require('minuet').setup {
  provider = 'openai_fim_compatible',
  n_completions = 3, -- three requests, one run of the server
  context_window = 4000, -- characters; the server takes 2048 tokens (--max-model-len)
  request_timeout = 10, -- seconds; 3, the default, is short without a GPU
  throttle = 0,      -- new requests are cheap
  debounce = 100,
  provider_options = {
    openai_fim_compatible = {
      name = 'Superdraft',
      end_point = 'http://127.0.0.1:8012/v1/completions',
      model = 'superdraft',
      api_key = 'TERM', -- a variable with the key; if the server requires none, any that is set
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
