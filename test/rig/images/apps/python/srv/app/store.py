"""Readings of sensors in an SQL database."""

import sqlalchemy
from sqlalchemy.orm import Session, declarative_base

Base = declarative_base()
engine = None


class Reading(Base):
    __tablename__ = "readings"
    id = sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)
    sensor = sqlalchemy.Column(sqlalchemy.String)
    value = sqlalchemy.Column(sqlalchemy.Float)


def open_store(url):
    global engine
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.StaticPool, connect_args={"check_same_thread": False})
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Reading(sensor="depth", value=v) for v in (12.5, 40.0, 41.5))
        session.commit()


def all_readings():
    with Session(engine) as session:
        return session.query(Reading).order_by(Reading.id).all()
