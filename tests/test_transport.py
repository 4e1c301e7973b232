"""What links want of TCP: numbers from a cluster alone, and the lines that say them."""

import pytest
from clusters import cluster_of

import isthmus
from isthmus.jobs.launch import launch_advice, launch_lines
from isthmus.links.tcp import tcp_settings


def cluster(*sites, **link):
    return isthmus.Cluster(cluster_of(*sites, **link))


def test_the_window_is_rate_by_round_trip_of_the_fullest_link():
    table = cluster_of(1, 1, 1)
    table["link"] = [
        {"from": "site0", "to": "site1", "latency_seconds": 0.08, "bytes_per_second": 1.25e8},
        {"from": "site1", "to": "site0", "latency_seconds": 0.02, "bytes_per_second": 1e6},
        {"between": ["site1", "site2"], "latency_seconds": 0.001, "bytes_per_second": 1e7},
    ]
    assert tcp_settings(isthmus.Cluster(table)).window_nbytes == 12_500_000
    assert tcp_settings(cluster(3)).window_nbytes == 0


def test_buffers_are_asked_for_where_the_usual_ones_do_not_hold_a_window():
    short = tcp_settings(cluster(1, 1, latency_seconds=0.01, bytes_per_second=1.25e7))
    assert short.kernel == {"net.ipv4.tcp_slow_start_after_idle": "0"}
    assert short.mca_without_root == {}
    assert short.routes["site0", "site1"] == "initcwnd 64 initrwnd 64 window 2097120"
    long = tcp_settings(cluster(1, 1, latency_seconds=0.05, bytes_per_second=1.25e8))
    assert long.buffer_nbytes == 3 * 65_535 * 512
    assert long.kernel["net.ipv4.tcp_wmem"] == "4096 100661760 100661760"
    assert long.mca_without_root == {"btl_tcp_sndbuf": "25000000"}


def test_each_way_has_the_window_of_its_own_rate():
    """65535 x 2^k, as the kernel announces them: near 8 round trips of the way's rate."""
    table = cluster_of(1, 1, 1)
    like = {"latency_seconds": 0.01, "bytes_per_second": 1.25e7}
    table["link"] = [
        {"between": ["site0", "site1"], **like},
        {"from": "site0", "to": "site2", **like},
        {"from": "site2", "to": "site0", **like, "bytes_per_second": 2.5e6},
    ]
    routes = tcp_settings(isthmus.Cluster(table)).routes
    window = {ends: int(words.split()[-1]) for ends, words in routes.items()}
    assert window.pop(("site0", "site2")) == 65_535 * 8  # what comes from there: 450,000 bytes in 0.18 s
    assert set(window.values()) == {65_535 * 32}
    lines = launch_lines(launch_advice(isthmus.Cluster(table), "train", "run.toml"))
    assert any(line.endswith("window 524280   on the routes of site0 to site2") for line in lines)


@pytest.mark.parametrize(("latency_seconds", "asks"), [(0.01, False), (0.0001, True), (0.0, True)])
def test_messages_are_eager_where_asking_takes_longer(latency_seconds, asks):
    mca = tcp_settings(cluster(1, 1, latency_seconds=latency_seconds)).mca
    assert list(mca) == (
        [] if asks else ["btl_tcp_eager_limit", "btl_tcp_rndv_eager_limit", "btl_tcp_max_send_size"]
    )


def test_the_launch_line_names_hosts_and_what_to_set_before():
    table = cluster_of(3, 1, latency_seconds=0.05, bytes_per_second=1.25e8)
    table["site"][0]["hosts"], table["site"][1]["hosts"] = ["near", "far"], ["edge"]
    advice = launch_advice(isthmus.Cluster(table), "train", "my run.toml")
    assert advice["command"][:8] == [
        "mpirun",
        "-n",
        "4",
        "--prtemca",
        "plm_ssh_agent",
        "ssh",
        "--host",
        "near:2,far:1,edge:1",
    ]  # never rsh
    first, *rest = launch_lines(advice)
    assert first.endswith("isthmus train 'my run.toml'")
    assert "sysctl -w 'net.ipv4.tcp_rmem=4096 100661760 100661760'" in rest
    assert rest[-1].endswith("--mca btl_tcp_sndbuf 25000000")
    plain = launch_advice(cluster(2), "train", "run.toml")["command"]
    assert plain == ["mpirun", "-n", "2", "isthmus", "train", "run.toml"]
