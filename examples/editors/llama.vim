let g:llama_config = {
    \ 'endpoint_fim': 'http://127.0.0.1:8012/infill',
    \ 'n_predict': 16,
    \ 'n_cmpl': 3,
    \ 'show_info': 0,
    \ }
