//! `prism recover`: the way back for an operator who holds the machine and no key.

use prism_core::limits::SessionPolicy;
use prism_core::secret::Random;
use prism_core::{Clock, Error};
use prism_store::Store;

use crate::cli::RecoverArgs;
use crate::data_dir::DataDir;
use crate::settings::{self, Environment};
use crate::{Failure, log, runtime};

/// Makes a new admin key in the data directory of a server that is not running, and says where it is.
pub fn run(args: &RecoverArgs) -> Result<(), Failure> {
    let environment = Environment::read(|name| std::env::var_os(name)).map_err(Failure::Usage)?;
    log::start(None, environment.log.as_deref()).map_err(Failure::Usage)?;
    let folder = settings::data_dir(args.data_dir.as_deref(), &environment);
    // Nothing is made where there is nothing to recover.
    if !folder.join("prism.db").is_file() {
        let shown = folder.display();
        return Err(Failure::Usage(format!(
            "there is no prism.db in {shown}; name the data directory of the server with --data-dir"
        )));
    }
    let directory = DataDir::open(&folder).map_err(Failure::Start)?;
    let id = runtime("prism-recover", 1)?.block_on(async {
        let store = Store::open(&folder, SessionPolicy::default(), Clock::system(), Random::system()).await?;
        let id = store.recover_admin_key(&folder).await?;
        // Found by the next start, too, if it fails now.
        if let Err(failed) = store.make_checkpoint().await {
            tracing::warn!(reason = failed.reason(), cause = ?failed.cause(), "the audit log could not be signed");
        }
        Ok::<_, Error>(id)
    });
    drop(directory);
    let id = id.map_err(|error| match error.cause() {
        Some(cause) => Failure::Start(format!("{}: {cause}", error.message())),
        None => Failure::Start(error.message().to_owned()),
    })?;
    println!("admin key {id} with the role admin: {}", folder.join("admin.token").display());
    println!("start the server, look at `prism-admin key list`, and revoke what is not needed");
    Ok(())
}
