SELECT $mixture AS mixture, $seed AS seed, * FROM read_json($file, format = 'newline_delimited', ignore_errors = true)
