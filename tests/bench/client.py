"""The benchmarks' client: asynchronous, logged in by ticket, able to define many guests at once."""

from __future__ import annotations

import asyncio

import aiohttp
import requests

from tests.harness import Appliance


def client(appliance: Appliance) -> aiohttp.ClientSession:
    """A session with a login by ticket."""
    login = requests.post(
        f"https://127.0.0.1:{appliance.port}/api2/json/access/ticket",
        data={"username": "admin@pve", "password": appliance.password},
        verify=str(appliance.data_dir / "pki" / "ca.pem"),
        timeout=30,
    ).json()["data"]
    headers = {"CSRFPreventionToken": login["CSRFPreventionToken"], "Cookie": f"PVEAuthCookie={login['ticket']}"}
    return aiohttp.ClientSession(
        base_url=f"https://127.0.0.1:{appliance.port}",
        connector=aiohttp.TCPConnector(ssl=False, limit=200),
        headers=headers,
    )


def define_vms(appliance: Appliance, count: int) -> None:
    """Define VMs 100 … through the API, eight at a time."""
    asyncio.run(_define_vms(appliance, count))


async def _define_vms(appliance: Appliance, count: int) -> None:
    async with client(appliance) as session:
        node = (await (await session.get("/api2/json/nodes")).json())["data"][0]["node"]
        slots = asyncio.Semaphore(8)

        async def one(number: int) -> None:
            async with slots:
                form = {"vmid": str(100 + number), "name": f"guest-{number}", "memory": "64", "tags": "bench"}
                async with session.post(f"/api2/json/nodes/{node}/qemu", data=form) as response:
                    response.raise_for_status()
                    upid = (await response.json())["data"]
                async with session.get(f"/api2/json/nodes/{node}/tasks/{upid}/status?wait=30") as response:
                    response.raise_for_status()

        await asyncio.gather(*(one(number) for number in range(count)))
