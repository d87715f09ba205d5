"""Tests of the images, alerts, dashboard and chart."""
