require('minuet').setup {
  provider = 'openai_fim_compatible',
  n_completions = 3, -- three requests, which the server answers with three drafts of a single run
  context_window = 4000, -- characters; the server refuses text beyond its --max-model-len (2048 tokens)
  throttle = 0,      -- new requests are cheap for the server
  debounce = 100,
  provider_options = {
    openai_fim_compatible = {
      name = 'Superdraft',
      end_point = 'http://127.0.0.1:8012/v1/completions',
      model = 'superdraft',
      api_key = 'TERM', -- name of an environment variable with the key; any variable that is set if the server requires no key
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
