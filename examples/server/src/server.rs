//! The server as a whole.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use qwen::Engine;
use tokio::net::{TcpListener, ToSocketAddrs};

use crate::app::App;
use crate::settings::Settings;
use crate::{connection, routes};

/// A server that listens.
///
/// ```
/// use qwen_server::{Server, Settings};
/// # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
/// let server = Server::bind("127.0.0.1:0", Settings::default()).await?;
/// println!("listening on http://{}", server.address());
/// let loader = server.loader();
/// std::thread::spawn(move || match qwen::Engine::load("path/to/Qwen2.5-7B-Instruct") {
///     Ok(engine) => loader.set(engine),
///     Err(error) => eprintln!("{error}"),
/// });
/// server.run(std::future::pending()).await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a server answers while it runs"]
pub struct Server {
    app: Arc<App>,
    listener: TcpListener,
    address: SocketAddr,
}

/// Gives a server its engine, from any thread.
#[derive(Debug, Clone)]
pub struct Loader(Arc<App>);

impl Loader {
    /// The model is loaded: requests are answered from now on. Only the first engine counts.
    pub fn set(&self, engine: Engine) {
        self.0.set_engine(engine);
    }
}

impl Server {
    /// Listen at `address`. Port 0 takes a free one.
    ///
    /// # Errors
    /// If the address is not this machine's, or in use.
    pub async fn bind(address: impl ToSocketAddrs, settings: Settings) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Server { app: Arc::new(App::new(settings, address.ip().is_loopback())), listener, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What gives it its engine.
    #[must_use]
    pub fn loader(&self) -> Loader {
        Loader(self.app.clone())
    }

    /// Answer requests until `shutdown` is ready. What runs then is finished, as long as
    /// [`Settings::shutdown_timeout`] allows.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Server { app, listener, .. } = self;
        let router = routes::router(app.clone());
        connection::serve(app, router, listener, shutdown).await;
    }
}
