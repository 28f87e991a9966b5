//! An operator who terminates sessions and changes things, and a fate that breaks them.

use std::sync::Arc;
use std::time::Duration;

use prism_core::nodes::Nodes;

use crate::world::World;

/// The operator, until the end of the simulation.
pub async fn operate(world: Arc<World>) {
    let dice = world.dice.clone();
    while world.pause(Duration::from_millis(300 + dice.below(3000))).await {
        if dice.below(3) == 0 {
            let message = (dice.below(2) == 0).then(|| format!("message {}", dice.below(1000)));
            let revision = world.control.maintain(message);
            if let Some(fleet) = world.fleet() {
                fleet.caught_up(revision).await;
            }
            continue;
        }
        let live = world.control.live();
        let (Some(fleet), false) = (world.fleet(), live.is_empty()) else { continue };
        let id = live[dice.below(live.len() as u64) as usize];
        let force = dice.below(3) > 0;
        let world = Arc::clone(&world);
        // Begun once it is carried out whole, whoever goes away.
        tokio::spawn(async move {
            world.control.terminate(id, force).await;
            let reached = fleet.terminate(id, force, "enough").await;
            if reached.unreachable.is_empty() {
                world.terminated(id);
            } else {
                world.log().line(format_args!("{id} was terminated, and {:?} does not know", reached.unreachable));
            }
        });
    }
}

/// Breaks things until the end of the simulation.
pub async fn fate(world: Arc<World>) {
    let dice = world.dice.clone();
    while world.pause(Duration::from_millis(500 + dice.below(6000))).await {
        let host = world.any_host();
        let long = Duration::from_millis(dice.below(if dice.below(4) == 0 { 30_000 } else { 6000 }));
        match dice.below(6) {
            0 | 1 => {
                world.log().line(format_args!("{} is cut off for {long:?}", host.node));
                world.network.block(&host.node, true);
                let world = Arc::clone(&world);
                tokio::spawn(async move {
                    world.pause(long).await;
                    world.network.block(&host.node, false);
                });
            }
            2 => {
                world.log().line(format_args!("the connection of {} breaks", host.node));
                world.network.cut(&host.node);
            }
            3 => {
                world.log().line(format_args!("{} crashes", host.node));
                host.crash();
                world.pause(Duration::from_millis(dice.below(4000))).await;
                host.start();
            }
            4 => {
                world.log().line("the controller crashes");
                world.stop_controller();
                world.pause(long).await;
                world.start_controller().await;
            }
            _ => {
                world.log().line(format_args!("everybody is cut off for {long:?}"));
                for host in &world.hosts {
                    world.network.block(&host.node, true);
                }
                world.pause(long).await;
                world.network.heal();
            }
        }
    }
}
