//! Adapters are models that clients ask for by name.

mod common;

use std::path::{Path, PathBuf};

use common::{options, serve};
use qwen::{Config, Engine};
use qwen_server::Settings;
use serde_json::{Value, json};

/// An adapter of the demo model that changes its queries, in a folder that is removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(config: &Config) -> Self {
        const RANK: usize = 4;
        let folder = std::env::temp_dir().join(format!("qwen-server-adapter-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        let queries = config.num_attention_heads * config.head_dim;
        for layer in 0..config.num_hidden_layers {
            for (half, shape) in [("A", [RANK, config.hidden_size]), ("B", [queries, RANK])] {
                let begin = data.len();
                for i in 0..shape[0] * shape[1] {
                    data.extend((((i * 37 + layer) % 19) as f32 / 10.0 - 0.9).to_le_bytes());
                }
                let name = format!("base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{half}.weight");
                header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]}));
            }
        }
        let header = Value::Object(header).to_string();
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        std::fs::write(folder.join("adapter_model.safetensors"), file).unwrap();
        let config = json!({"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj"]});
        std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn an_adapter_is_a_model_of_its_name() {
    let engine: Engine = options().load(Path::new(common::DEMO)).unwrap();
    let folder = Folder::new(engine.config());
    let adapter = engine.load_adapter_as("poet", &folder.0).unwrap();
    let server = serve(Settings::default(), Some(engine.clone()));

    let models = server.get("/v1/models").ok();
    let ids: Vec<&str> = models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["qwen", "poet"]);
    assert_eq!(server.get("/v1/models/poet").ok()["parent"], "qwen");

    let ask = |model: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "Hello!"}], "temperature": 0,
            "max_tokens": 12});
        server.chat(body).ok()
    };
    let (plain, adapted) = (ask("qwen"), ask("poet"));
    assert_eq!(adapted["model"], "poet");
    assert_ne!(plain["choices"], adapted["choices"]);
    // As the library answers with it.
    let options = qwen::GenerateOptions::new().greedy().max_new_tokens(12).adapter(&adapter);
    let message = engine.chat().options(options).send("Hello!").unwrap().message().unwrap();
    assert_eq!(adapted["choices"][0]["message"]["content"], json!(message.text()));

    let vector = |model: &str| server.post("/v1/embeddings", &json!({"model": model, "input": "Hello!"})).ok();
    assert_ne!(vector("qwen")["data"], vector("poet")["data"]);

    engine.unload_adapter("poet").unwrap();
    let body = json!({"model": "poet", "messages": [{"role": "user", "content": "Hello!"}]});
    assert_eq!(server.chat(body).error(404)["code"], "model_not_found");
}
