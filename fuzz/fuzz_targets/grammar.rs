#![cfg_attr(fuzzing, no_main)]

qwen_fuzz::fuzz!(qwen_fuzz::grammar::grammar);
