//! The environment variables that Python's `huggingface_hub` knows, with the names that they had before.

use std::ffi::OsString;
use std::path::PathBuf;

/// What the environment says.
pub(super) struct Environment {
    pub(super) cache: PathBuf,
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    pub(super) is_offline: bool,
}

/// The hub itself.
const ENDPOINT: &str = "https://huggingface.co";

impl Environment {
    pub(super) fn read() -> Self {
        Self::of(|name| std::env::var_os(name), std::env::home_dir())
    }

    fn of(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Self {
        let first = |names: &[&str]| names.iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
        let text = |names: &[&str]| first(names).and_then(|value| value.into_string().ok());
        let hf_home = first(&["HF_HOME"]).map(PathBuf::from).unwrap_or_else(|| {
            let cache = first(&["XDG_CACHE_HOME"]).map(PathBuf::from);
            cache.unwrap_or_else(|| home.unwrap_or_default().join(".cache")).join("huggingface")
        });
        let token_file = first(&["HF_TOKEN_PATH"]).map_or_else(|| hf_home.join("token"), PathBuf::from);
        let token = text(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(|| std::fs::read_to_string(token_file).ok());
        let is_on = |name: &str| {
            let value = text(&[name]).unwrap_or_default().to_ascii_uppercase();
            matches!(value.as_str(), "1" | "ON" | "YES" | "TRUE")
        };
        let cache = first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).map(PathBuf::from);
        Environment {
            cache: cache.unwrap_or_else(|| hf_home.join("hub")),
            endpoint: text(&["HF_ENDPOINT"]).unwrap_or_else(|| ENDPOINT.into()),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            is_offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn of(variables: &[(&str, &str)]) -> Environment {
        let value = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Environment::of(value, Some("/nowhere/home".into()))
    }

    #[test]
    fn variables_and_their_older_names() {
        let default = of(&[("HF_HOME", ""), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(default.cache, Path::new("/nowhere/home/.cache/huggingface/hub"));
        assert_eq!((default.endpoint.as_str(), default.token, default.is_offline), (ENDPOINT, None, false));
        let cache = |variables: &[(&str, &str)]| of(variables).cache;
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/c")]), Path::new("/c/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/c"), ("HF_HOME", "/h")]), Path::new("/h/hub"));
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")]), Path::new("/old"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "/new"), ("HUGGINGFACE_HUB_CACHE", "/old")]), Path::new("/new"));
        let token = of(&[("HF_TOKEN", " hf_x\n"), ("HUGGING_FACE_HUB_TOKEN", "hf_old")]).token;
        assert_eq!(token.as_deref(), Some("hf_x"));
        assert!(of(&[("TRANSFORMERS_OFFLINE", "true")]).is_offline);
        assert_eq!(of(&[("HF_ENDPOINT", "http://mirror")]).endpoint, "http://mirror");
    }
}
