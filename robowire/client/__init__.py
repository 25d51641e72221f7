"""The clients: sessions with policy and simulator servers. numpy and the standard library only."""
