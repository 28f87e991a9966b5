//! Work that goes on when whoever waits for it goes away.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::FutureExt as _;
use prism_core::{Error, Result};
use tokio::runtime::Handle;

type Work<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// Does its work where it is waited for, and what is left of it in a task of its own when it is dropped.
pub(crate) struct ToTheEnd<T: Send + 'static> {
    /// `None` when it is done.
    work: Option<Work<T>>,
}

impl<T: Send + 'static> ToTheEnd<T> {
    /// A panic in `work` is an INTERNAL error.
    pub(crate) fn new(work: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        let work = AssertUnwindSafe(work).catch_unwind().map(|result| {
            result.unwrap_or_else(|_| Err(Error::internal("an operation panicked; the panic is in the log")))
        });
        Self { work: Some(Box::pin(work)) }
    }
}

impl<T: Send + 'static> Future for ToTheEnd<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let Some(work) = &mut self.work else {
            return Poll::Ready(Err(Error::internal("an operation was waited for after its end")));
        };
        let result = work.as_mut().poll(context);
        if result.is_ready() {
            self.work = None;
        }
        result
    }
}

impl<T: Send + 'static> Drop for ToTheEnd<T> {
    fn drop(&mut self) {
        // Without a runtime the server is at its end.
        if let (Some(work), Ok(runtime)) = (self.work.take(), Handle::try_current()) {
            runtime.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_goes_on_when_nobody_waits() {
        for polled in [false, true] {
            let ((open, opened), (tell, told)) = (oneshot::channel::<()>(), oneshot::channel());
            let mut work = ToTheEnd::new(async move {
                opened.await.map_err(Error::internal)?;
                tell.send(7).map_err(|_| Error::internal("nobody listens"))
            });
            if polled {
                assert!(futures::poll!(&mut work).is_pending());
            }
            drop(work);
            open.send(()).unwrap();
            assert_eq!(told.await, Ok(7));
        }
    }

    #[tokio::test]
    async fn the_result_is_that_of_the_work_and_a_panic_is_an_error() {
        assert_eq!(ToTheEnd::new(async { Ok(3) }).await.unwrap(), 3);
        let panicked = ToTheEnd::<()>::new(async { panic!("on purpose") }).await;
        assert_eq!(panicked.unwrap_err().reason(), "INTERNAL");
    }
}
